"""Every metric by its identifier: name, direction, unit, source, and what it sees. Scores, pages, plots and tables take them from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from synthorax.errors import UsageError, nearest

Direction = Literal["higher", "lower"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What a reader must know of one metric."""

    name: str
    """for pages, plots and tables"""
    better: Direction
    source: str
    """paper and equation, or the statistical method"""
    sees: str
    """what makes it better or worse, in one line"""
    unit: str = ""
    """empty for shares, areas and other numbers without a unit"""


def metric_of(identifier: str) -> Metric:
    """The entry of an identifier; an unknown one is an error that names the nearest.

    >>> metric_of("kid").name
    'KID'
    """
    if identifier not in METRICS:
        raise UsageError(f"unknown metric '{identifier}'; {nearest(identifier, METRICS)}. Enter a metric of your own into "
                         "synthorax.metric_table.METRICS")
    return METRICS[identifier]


def keep_unknown(identifier: str, *, better: Direction) -> None:
    """Enter a metric of a report that another program made, so that the report can be read: all that is known is its direction."""
    if identifier not in METRICS:
        METRICS[identifier] = Metric(name=identifier, better=better, source="not known here", sees="not known here")


_FRAC = "fraction of the image's side"
_SIZES = "Wasserstein-1 distance between the distributions in real and in synthetic images"
_ACCURACY = "share; interval over readers and images"
_ASSISTED = "multi-reader comparison; interval over readers and images"

METRICS: dict[str, Metric] = {
    # fidelity
    "fid": Metric(name="FID", better="lower", source="Heusel et al. 2017, Eq. 6",
                  sees="both sets as one Gaussian each: collapse, noise, other anatomy; biased upwards where images are few"),
    "fid_64": Metric(name="FID in 64 directions", better="lower", source="Heusel et al. 2017, Eq. 6; Chong and Forsyth 2020",
                     sees="what FID sees in the directions in which the images differ most, nearly without its bias"),
    "kid": Metric(name="KID", better="lower", source="Bińkowski et al. 2018, Eq. 4, over all pairs",
                  sees="other images than real ones, without a bias from the number of images"),
    "mmd": Metric(name="MMD", better="lower", source="Jayasumana et al. 2024; Gretton et al. 2012, Eq. 3, Gaussian kernel",
                  sees="any difference between the two distributions of features"),
    "energy_distance": Metric(name="Energy distance", better="lower", source="Székely and Rizzo 2013, Eq. 3",
                              sees="any difference between two distributions of a few standardised features"),
    "radiomics_distance": Metric(name="Radiomics distance", better="lower", source="energy distance of 22 radiomics features",
                                 sees="other intensities and textures: blur, noise, inverted or cropped images"),
    "lung_area": Metric(name="Lung area, distance", better="lower", unit="fraction of the image", source=_SIZES,
                        sees="lungs that are larger or smaller than real ones"),
    "lung_width": Metric(name="Lung width, distance", better="lower", unit=_FRAC, source=_SIZES,
                         sees="chests that are wider or narrower than real ones"),
    "lung_height": Metric(name="Lung height, distance", better="lower", unit=_FRAC, source=_SIZES,
                          sees="lungs that are longer or shorter than real ones"),
    "right_lung_share": Metric(name="Right lung share, distance", better="lower", source=_SIZES,
                               sees="mirrored chests, and lungs of unequal size"),
    "heart_width": Metric(name="Heart width, distance", better="lower", unit=_FRAC, source=_SIZES,
                          sees="hearts that are wider or narrower than real ones"),
    "cardiothoracic_ratio": Metric(name="Cardiothoracic ratio, distance", better="lower", source=f"Danzer 1919; {_SIZES}",
                                   sees="hearts that do not fit their chests"),
    "as_near_as_one_patient": Metric(name="As near as one patient's images", better="higher",
                                     source="share within the 95th percentile of real same-patient distances",
                                     sees="images that lie as near to a real one as other people's do; far above the floor, images that "
                                          "follow single patients"),
    "paired_ssim": Metric(name="SSIM of pairs", better="higher", source="Wang et al. 2004, Eq. 13",
                          sees="whether an image made from a real one still has its structure"),
    "paired_psnr": Metric(name="PSNR of pairs", better="higher", unit="dB", source="peak signal-to-noise ratio",
                          sees="whether an image made from a real one still has its pixels"),
    # diversity
    "precision": Metric(name="Precision", better="higher", source="Kynkäänniemi et al. 2019, Eq. 1",
                        sees="implausible images: those outside the real ones"),
    "recall": Metric(name="Recall", better="higher", source="Kynkäänniemi et al. 2019, Eq. 2",
                     sees="mode collapse: real images that nothing synthetic is near"),
    "density": Metric(name="Density", better="higher", source="Naeem et al. 2020, Eq. 3",
                      sees="implausible images, without being misled by real outliers"),
    "coverage": Metric(name="Coverage", better="higher", source="Naeem et al. 2020, Eq. 4",
                       sees="mode collapse and missing subtypes, without being misled by synthetic outliers"),
    "vendi": Metric(name="Vendi score", better="higher", unit="images", source="Friedman and Dieng 2023, Eq. 2",
                    sees="how many different images the set amounts to"),
    "ms_ssim_gap": Metric(name="MS-SSIM gap", better="lower", source="Odena et al. 2017; Wang, Simoncelli and Bovik 2003, Eq. 7",
                          sees="images that are more, or less, alike than real ones are"),
    "ms_ssim_within_synthetic": Metric(name="MS-SSIM within synthetic images", better="lower", source="Odena et al. 2017",
                                       sees="mode collapse: synthetic images that are alike"),
    "ms_ssim_within_real": Metric(name="MS-SSIM within real images", better="lower", source="Odena et al. 2017",
                                  sees="how alike real images are: the reference for the synthetic ones"),
    "ms_ssim_across": Metric(name="MS-SSIM across", better="higher", source="Odena et al. 2017",
                             sees="how alike a real and a synthetic image are"),
    # lesion preservation
    "requested_mask_iou": Metric(name="IoU with the requested mask", better="higher", source="Jaccard 1901",
                                 sees="lesions or organs that are missing, or not where the mask is"),
    "mask_iou": Metric(name="IoU", better="higher", source="Jaccard 1901", sees="masks that do not overlap"),
    "side_agreement": Metric(name="Side agreement", better="higher", source="share, Wilson 1927",
                             sees="lesions on the other side, or none"),
    "lesion_inside_box": Metric(name="Lesion inside the box", better="higher", source="share of the segmented pixels",
                                sees="lesions that reach out of the requested box, or none"),
    "lesion_contrast": Metric(name="Lesion contrast, distance", better="lower", source=_SIZES,
                              sees="lesions that are fainter or brighter than real ones"),
    "lesion_ssim": Metric(name="Lesion SSIM", better="higher", source="Wang et al. 2004, Eq. 13",
                          sees="lesions unlike the most similar real one, in pixels"),
    "lesion_perceptual_distance": Metric(name="Lesion perceptual distance", better="lower", source="distance in the first feature space",
                                         sees="lesions unlike the most similar real one, in features"),
    "requested_place_auroc": Metric(name="AUROC of the requested places", better="higher",
                                    source="channelised Hotelling observer (Gallas and Barrett 2003); DeLong et al. 1988",
                                    sees="small lesions that are missing, or not where they were requested"),
    # controllability
    "requested_finding_auroc": Metric(name="AUROC of the requested finding", better="higher", source="DeLong et al. 1988",
                                      sees="images that do not show the finding that was requested"),
    "view_agreement": Metric(name="View agreement", better="higher", source="share, Wilson 1927",
                             sees="images of another view than requested"),
    # balance
    "prevalence_after": Metric(name="Prevalence after augmentation", better="higher", source="share, Wilson 1927",
                               sees="how common the finding is among all training images"),
    # benefit, and comparisons of generators
    "auroc": Metric(name="AUROC", better="higher", source="DeLong et al. 1988",
                    sees="how well an arm's classifier ranks real images of unseen patients"),
    "downstream_auroc_gain": Metric(name="Downstream AUROC gain", better="higher", source="patient bootstrap",
                                    sees="what a classifier gains when synthetic images join the real ones"),
    "froc_sensitivity": Metric(name="Sensitivity at 0.5 false marks an image", better="higher",
                               source="Bunch et al. 1978; patient bootstrap",
                               sees="lesions that a detector misses, or ranks below its false marks"),
    "jafroc": Metric(name="JAFROC", better="higher", source="Chakraborty and Berbaum 2004, Eq. 3; patient bootstrap",
                     sees="lesions that a detector marks lower than places on images without any"),
    # clinical acceptability
    "turing_accuracy": Metric(name="Turing accuracy", better="lower", source=_ACCURACY,
                              sees="readers who tell synthetic from real images"),
    "balanced_turing_accuracy": Metric(name="Balanced Turing accuracy", better="lower", source=_ACCURACY,
                                       sees="the same, whatever the mix of real and synthetic images"),
    "turing_sensitivity": Metric(name="Synthetic images called synthetic", better="lower", source=_ACCURACY,
                                 sees="synthetic images that readers recognise"),
    "turing_auroc": Metric(name="Turing AUROC", better="lower", source="DeLong et al. 1988",
                           sees="one reader's confidence that follows the truth"),
    "acceptable_readings": Metric(name="Acceptable readings", better="higher", source=_ACCURACY,
                                  sees="ratings of 4 or 5 for synthetic images"),
    "acceptable_images": Metric(name="Acceptable images", better="higher", source="majority of readers; share, Wilson 1927",
                                sees="synthetic images that most readers accept"),
    "requested_finding_seen": Metric(name="Requested finding seen", better="higher", source="majority of readers; share, Wilson 1927",
                                     sees="images in which readers miss the requested finding"),
    "absent_finding_seen": Metric(name="Absent finding seen", better="lower", source="majority of readers; share, Wilson 1927",
                                  sees="images in which readers see a finding that was not requested"),
    "agreement_on_origin": Metric(name="Agreement on real or synthetic", better="higher", source="Fleiss 1971 (kappa)",
                                  sees="readers who contradict one another about what is synthetic"),
    "agreement_on_acceptability": Metric(name="Agreement on acceptability", better="higher", source="Krippendorff 2011 (alpha)",
                                         sees="readers who rate the same image differently"),
    "sensitivity_unassisted": Metric(name="Sensitivity, unassisted", better="higher", source=_ASSISTED,
                                     sees="findings that readers miss on their own"),
    "sensitivity_assisted": Metric(name="Sensitivity, assisted", better="higher", source=_ASSISTED,
                                   sees="findings that readers miss with assistance"),
    "sensitivity_gain": Metric(name="Sensitivity gain", better="higher", source="McNemar 1947; interval over readers and images",
                               sees="what assistance changes in the findings that readers miss"),
    "specificity_unassisted": Metric(name="Specificity, unassisted", better="higher", source=_ASSISTED,
                                     sees="false alarms of readers on their own"),
    "specificity_assisted": Metric(name="Specificity, assisted", better="higher", source=_ASSISTED,
                                   sees="false alarms of readers with assistance"),
    "specificity_gain": Metric(name="Specificity gain", better="higher", source="McNemar 1947; interval over readers and images",
                               sees="what assistance changes in the false alarms of readers"),
    # robustness
    "kid_to_site": Metric(name="KID to a site", better="lower", source="Bińkowski et al. 2018, Eq. 4",
                          sees="sites whose images the synthetic ones do not resemble"),
    "kid_shift": Metric(name="KID shift by corruption", better="lower", source="difference of two KIDs on the same images",
                        sees="corruptions that the feature space notices"),
    # privacy
    "near_duplicate_rate": Metric(name="Near-duplicate rate", better="lower", source="conformal threshold (Vovk et al. 2005, ch. 2)",
                                  sees="synthetic images that repeat a training image"),
    "false_alarm_rate": Metric(name="False-alarm rate", better="lower", source="share, Wilson 1927",
                               sees="real images of other patients that are called near-duplicates"),
    "planted_copies_caught": Metric(name="Planted copies caught", better="higher", source="share, Wilson 1927",
                                    sees="copies that the detector misses"),
    "nearer_than_follow_up": Metric(name="Nearer than a follow-up", better="lower", source="share, Wilson 1927",
                                    sees="images nearer to a training image than two images of one patient usually are"),
    "membership_auroc": Metric(name="Membership inference AUROC", better="lower", source="DeLong et al. 1988",
                               sees="whether an attacker can tell who was trained on"),
    "same_patient_auroc": Metric(name="Same-patient AUROC of the judge", better="higher", source="patient bootstrap",
                                 sees="how well the re-identification judge works"),
    "patient_match_rate": Metric(name="Patient match rate", better="lower", source="conformal threshold (Vovk et al. 2005, ch. 2)",
                                 sees="synthetic images that pass for an image of a training patient"),
    # latents of an autoencoder
    "latent_mmd": Metric(name="MMD of the latents to the prior", better="lower", source="Gretton et al. 2012, Eq. 3",
                         sees="latents of images that do not lie where the prior does"),
}
"""identifier (snake_case) -> what it is; a metric of another package enters itself here"""
