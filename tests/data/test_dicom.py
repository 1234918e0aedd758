"""DICOM in: a table of files made from known pixels and the grey expected of them. DICOM out: every promise, tag by tag."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import subprocess
import time
import warnings
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicom_files import FULL12, RAMP8, RAMP12, dicom
from synthorax.data.dicom_grey import window
from synthorax.data.dicom_read import is_dicom, read_dicom
from synthorax.data.dicom_write import COMPRESSIONS, uid_of, write_dicom
from synthorax.data.image_files import read_image
from synthorax.errors import InputError
from synthorax.types import Stated, Study

IMAGES = Path(__file__).parents[3] / "shared" / "data" / "formats"


def lut(first: int, bits: int, entries: list[int]) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item.add_new("LUTData", "US", entries)
    return [item]


SIGNED = RAMP12.astype(np.int16) - 2048
TO16, FALLING = RAMP12 * (65535 / 4095), (4095 - RAMP12) * (65535 / 4095)
SQUARES = [int(value * value // 4095) for value in range(4096)]
CASES: dict[str, tuple[np.ndarray[Any, Any], dict[str, Any], np.ndarray[Any, Any]]] = {
    # name: (stored values, bits and header, expected grey)
    "8 bit as stored": (RAMP8, {"bits": 8}, RAMP8),
    "MONOCHROME1": (RAMP8, {"bits": 8, "PhotometricInterpretation": "MONOCHROME1"}, 255 - RAMP8),
    "6 of 8 bits": (RAMP8 // 4, {"bits": 6}, RAMP8 // 4 * (255 / 63)),
    "12 bit full window": (RAMP12, {"bits": 12, **FULL12}, TO16),
    "12 bit MONOCHROME1": (RAMP12, {"bits": 12, **FULL12, "PhotometricInterpretation": "MONOCHROME1"}, FALLING),
    "16 bit full window": (RAMP12 * 16, {"bits": 16, "WindowCenter": 32768, "WindowWidth": 65536}, RAMP12 * 16.0),
    "signed": (SIGNED, {"bits": 12, "WindowCenter": 0, "WindowWidth": 4096}, TO16),
    "rescale": (RAMP12, {"bits": 12, "RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 3095.5, "WindowWidth": 8191}, TO16),
    "negative slope": (RAMP12, {"bits": 12, "RescaleSlope": -1, "RescaleIntercept": 4095, **FULL12}, FALLING),
    "slope without intercept": (RAMP12, {"bits": 12, "RescaleSlope": -1, "WindowCenter": -2047, "WindowWidth": 4096}, FALLING),
    "modality LUT": (RAMP12, {"bits": 12, "ModalityLUTSequence": lut(0, 16, list(range(4095, -1, -1))), **FULL12}, FALLING),
    "VOI LUT": (RAMP12, {"bits": 12, "VOILUTSequence": lut(0, 12, SQUARES)}, np.array(SQUARES)[RAMP12] * (65535 / 4095)),
    "VOI LUT before window": (RAMP12, {"bits": 12, "VOILUTSequence": lut(0, 12, SQUARES), **FULL12},
                              np.array(SQUARES)[RAMP12] * (65535 / 4095)),
    "VOI LUT of 8 bits": (RAMP12, {"bits": 12, "VOILUTSequence": lut(0, 8, [i // 16 for i in range(4096)])}, RAMP12 // 16 * 257.0),
    "VOI LUT from a negative value": (SIGNED, {"bits": 12, "VOILUTSequence": lut(-2048, 12, SQUARES)},
                                      np.array(SQUARES)[RAMP12] * (65535 / 4095)),
    "LINEAR_EXACT": (RAMP12, {"bits": 12, "WindowCenter": 2048, "WindowWidth": 2048, "VOILUTFunction": "LINEAR_EXACT"},
                     np.clip((RAMP12 - 1024.0) / 2048, 0, 1) * 65535),
    "SIGMOID": (RAMP12, {"bits": 12, "WindowCenter": 2048, "WindowWidth": 1024, "VOILUTFunction": "SIGMOID"},
                65535 / (1 + np.exp(-4 * (RAMP12 - 2048.0) / 1024))),
    "the first of two windows": (RAMP12, {"bits": 12, "WindowCenter": [2048, 10], "WindowWidth": [4096, 5]}, TO16),
    "unused high bits": (RAMP12 | 0xA000, {"bits": 12, **FULL12}, TO16),
    "padding": (RAMP12, {"bits": 12, **FULL12, "PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0,
                         "PixelPaddingRangeLimit": 99}, np.where(RAMP12 < 100, 0, FALLING)),
    "colour": (np.stack([RAMP8, RAMP8 // 2, RAMP8 // 4], axis=-1), {"bits": 8},
               0.299 * RAMP8 + 0.587 * (RAMP8 // 2) + 0.114 * (RAMP8 // 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_grey_of_known_pixels(tmp_path: Path, name: str) -> None:
    stored, header, expected = CASES[name]
    grey, _ = read_dicom(dicom(tmp_path / "image", stored, **header))
    assert grey.dtype == (np.uint8 if header["bits"] <= 8 else np.uint16)
    assert np.abs(grey - expected).max() <= 0.5 + 1e-6
    assert np.array_equal(read_image(tmp_path / "image"), grey)


LOSSLESS = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
            JPEGLSLossless, JPEG2000Lossless]


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("kind", ["8", "12", "16", "signed"])
def test_every_lossless_syntax_gives_every_pixel(tmp_path: Path, syntax: pydicom.uid.UID, kind: str) -> None:
    if kind == "signed" and syntax == JPEGLSLossless:
        pytest.skip("JPEG-LS has no signed values, and pydicom does not write them")
    deep = np.random.default_rng(0).integers(0, 65536, (37, 41), dtype=np.uint16)
    stored, bits, header = {
        "8": ((deep // 256).astype(np.uint8), 8, {}), "12": (deep // 16, 12, FULL12),
        "16": (deep, 16, {"WindowCenter": 32768, "WindowWidth": 65536}),
        "signed": ((deep // 16).astype(np.int16) - 2048, 12, {"WindowCenter": 0, "WindowWidth": 4096}),
    }[kind]
    grey, _ = read_dicom(dicom(tmp_path / "film.dcm", stored, bits=bits, syntax=syntax, **header))
    wanted = {"8": deep // 256, "16": deep}.get(kind, deep // 16 * (65535 / 4095))
    assert np.abs(grey - wanted).max() <= 0.5 + 1e-6


def test_jpeg_baseline(tmp_path: Path) -> None:
    smooth, buffer = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)), io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95)
    path = dicom(tmp_path / "film.dcm", smooth, bits=8)
    image = pydicom.dcmread(path)
    image.PixelData = encapsulate([buffer.getvalue()])
    image["PixelData"].is_undefined_length = True
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.save_as(path)
    assert np.abs(read_dicom(path)[0].astype(int) - smooth).max() <= 4
    image.Rows = image.Columns = 32
    image.save_as(path)
    with pytest.raises(InputError, match="another size"):
        read_dicom(path)


@pytest.mark.skipif(not shutil.which("dcmcjpeg"), reason="DCMTK is not installed")
def test_jpeg_lossless_is_exact_or_refused_with_a_way_out(tmp_path: Path) -> None:
    raw = dicom(tmp_path / "raw.dcm", RAMP12, bits=12, StudyInstanceUID="2.25.2", SeriesInstanceUID="2.25.3", **FULL12)
    subprocess.run(["dcmcjpeg", "+e1", raw, tmp_path / "film.dcm"], check=True)
    if pydicom.pixels.get_decoder(JPEGLosslessSV1).is_available:
        assert np.abs(read_dicom(tmp_path / "film.dcm")[0] - TO16).max() <= 0.5 + 1e-6
    else:
        with pytest.raises(InputError, match=r"dcmdjpeg.*jpeg-lossless"):
            read_dicom(tmp_path / "film.dcm")


def test_windows_and_rescale_agree_with_pydicom() -> None:
    draw, values = np.random.default_rng(3), np.arange(4096)
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        for _ in range(10):
            header = Dataset()
            header.BitsStored, header.PixelRepresentation, header.PhotometricInterpretation = 12, 0, "MONOCHROME2"
            header.WindowCenter, header.WindowWidth = float(draw.integers(0, 4096)), float(draw.integers(2, 6000))
            header.VOILUTFunction = function
            header.RescaleSlope, header.RescaleIntercept = 1, 0
            with np.errstate(over="ignore"):
                theirs = apply_voi_lut(apply_modality_lut(values, header), header) / 4095
            ours = window(values.astype(float), center=header.WindowCenter, width=header.WindowWidth, function=function)
            assert np.allclose(ours, theirs, atol=1e-9)


def test_without_a_window_deep_images_use_percentiles_and_leave_out_padding(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(1500, 100, (200, 200)).clip(1, 4095).astype(np.uint16)
    image[:50] = 4000  # what lies beyond the collimator
    image[0, 100] = 9
    with_padding, facts = read_dicom(dicom(tmp_path / "a", image, bits=12, PixelPaddingValue=4000))
    low, high = np.percentile(image[image != 4000], (0.5, 99.5))
    assert facts["grey"] == "percentiles 0.5 to 99.5"
    assert (with_padding[:50] == 0).sum() >= 9999 and with_padding.max() == 65535
    wanted = np.clip((image[50:] - low) / (high - low), 0, 1) * 65535
    assert np.abs(with_padding[50:] - wanted).max() < 2 * 65535 / (high - low)
    without, _ = read_dicom(dicom(tmp_path / "b", image, bits=12))
    assert without[50:].std() < 0.3 * with_padding[50:].std()


def test_facts_of_the_header(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a", RAMP8, bits=8, StudyInstanceUID="2.25.9", PatientSex="F", PatientAge="006M", Modality="DX",
                 PixelSpacing=[0.168, 0.168], ImageLaterality="U", ViewPosition="AP")
    facts = read_dicom(path)[1]
    assert facts == {"patient_id": "CANARY", "study_id": "2.25.9", "sop_uid": "2.25.1", "view": "AP", "sex": "F", "age_years": "0.5",
                     "spacing_mm": "0.168", "modality": "DX", "laterality": "U", "grey": "as stored"}
    bare = read_dicom(dicom(tmp_path / "b", RAMP8, bits=8, PatientID=None))[1]
    assert {name for name, value in bare.items() if value} == {"sop_uid", "grey"}


def view_code(value: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = value, "SCT"
    return [item]


@pytest.mark.parametrize(("header", "view"), [
    ({"ViewPosition": "LL"}, "LATERAL"), ({"SeriesDescription": "view: PA"}, "PA"), ({"SeriesDescription": "CHEST AP PORTABLE"}, "AP"),
    ({"SeriesDescription": "CHEST PA AND LAT"}, ""), ({"ViewPosition": "LLD", "SeriesDescription": "CHEST LAT"}, ""),
    ({"SeriesDescription": "THORAX LAT DECUB"}, ""), ({"ViewCodeSequence": view_code("272479007")}, "PA"),
    ({"ViewCodeSequence": view_code("R-10206")}, "AP"),
    ({"SeriesDescription": "Lapland"}, ""), ({"ViewPosition": "ANTEROPOSTERIOR"}, "AP"),
])
def test_views(tmp_path: Path, header: dict[str, Any], view: str) -> None:
    assert read_dicom(dicom(tmp_path / "a", RAMP8, bits=8, **header))[1]["view"] == view


@pytest.mark.parametrize(("born", "age"), [("19500615", 60), ("19500616", 59), ("20100101", 5 / 12), ("20080616", 23 / 12),
                                           ("20080615", 2)])
def test_age_from_dates_in_completed_years_and_of_infants_in_months(tmp_path: Path, born: str, age: float) -> None:
    header = {"PatientBirthDate": born, "StudyDate": "20100615", "ImagerPixelSpacing": [0.2, 0.1]}
    facts = read_dicom(dicom(tmp_path / "a", RAMP8, bits=8, **header))[1]
    assert float(facts["age_years"]) == pytest.approx(age, abs=1e-3) and facts["spacing_mm"] == "0.2|0.1"


@pytest.mark.parametrize("header", [
    {"WindowCenter": 0, "WindowWidth": 0}, {"WindowCenter": 9, "WindowWidth": -4}, {"WindowCenter": 9, "WindowWidth": 0.5},
    {"WindowCenter": 9, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
])
def test_an_undefined_window_is_passed_over_with_a_note(tmp_path: Path, header: dict[str, Any]) -> None:
    without, _ = read_dicom(dicom(tmp_path / "a", RAMP12, bits=12))
    grey, facts = read_dicom(dicom(tmp_path / "b", RAMP12, bits=12, **header))
    assert np.array_equal(grey, without)
    assert facts["grey"].startswith("percentiles 0.5 to 99.5; unusable: the window ")
    assert read_dicom(dicom(tmp_path / "c", RAMP8, bits=8, **header))[1]["grey"].startswith("as stored; unusable")


@pytest.mark.parametrize(("stated", "function"), [("linear", "LINEAR"), ("Sigmoid ", "SIGMOID"), ("linear_exact", "LINEAR_EXACT")])
def test_a_function_in_small_letters_is_that_function(tmp_path: Path, stated: str, function: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom says that small letters are against the standard
        grey, facts = read_dicom(dicom(tmp_path / "a", RAMP12, bits=12, **FULL12, VOILUTFunction=stated))
        odd, told = read_dicom(dicom(tmp_path / "b", RAMP12, bits=12, **FULL12, VOILUTFunction="SAMPLED_SIGMOID"))
    assert np.array_equal(grey, read_dicom(dicom(tmp_path / "c", RAMP12, bits=12, **FULL12, VOILUTFunction=function))[0])
    assert facts["grey"] == f"window 2048/4096 {function}"
    assert np.array_equal(odd, read_dicom(dicom(tmp_path / "d", RAMP12, bits=12, **FULL12))[0])
    assert told["grey"] == "window 2048/4096 LINEAR; unusable: the function 'SAMPLED_SIGMOID', taken as LINEAR"


def test_files_without_preamble(tmp_path: Path) -> None:
    whole = dicom(tmp_path / "image", RAMP12, bits=12, syntax=ImplicitVRLittleEndian, **FULL12)
    meta = pydicom.dcmread(whole).file_meta
    bare = whole.read_bytes()[132 + 12 + meta.FileMetaInformationGroupLength:]
    (tmp_path / "bare").write_bytes(bare)
    (tmp_path / "text").write_bytes(b"file_name,findings\n" * 20)
    (tmp_path / "short").write_bytes(bare[:90])
    assert is_dicom(whole) and is_dicom(tmp_path / "bare")
    assert not any(is_dicom(tmp_path / name) for name in ("text", "short", "none", "."))
    assert np.array_equal(read_dicom(tmp_path / "bare")[0], read_dicom(whole)[0])


@pytest.mark.parametrize(("header", "problem"), [
    ({"NumberOfFrames": 2}, "2 frames"), ({"PixelData": None}, "without pixel data"), ({"Rows": None}, "without an image"),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"), ({"HighBit": 15}, "low bits"), ({"BitsStored": 17}, "17 bits"),
    ({"Rows": 65535, "Columns": 65535}, "at most 40,000,000"), ({"Rows": 65}, "pixel data"),
    ({"VOILUTSequence": lut(0, 40, [1, 2])}, "40 bits"), ({"BitsStored": None}, "no BitsStored"), ({"Rows": 0}, "64 x 0"),
])
def test_refused_with_reason(tmp_path: Path, header: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        read_image(dicom(tmp_path / "film.dcm", RAMP12, bits=12, **header))
    assert caught.value.file == tmp_path / "film.dcm" and caught.value.remedy and "CANARY" not in str(caught.value).upper()


def test_bombs_are_refused_quickly(tmp_path: Path) -> None:
    image = dicom(tmp_path / "film.dcm", RAMP8, bits=8, syntax=DeflatedExplicitVRLittleEndian)
    start_of_data = 132 + 12 + pydicom.dcmread(image).file_meta.FileMetaInformationGroupLength
    packer = zlib.compressobj(9, wbits=-15)
    zeros = b"".join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()
    image.write_bytes(image.read_bytes()[:start_of_data] + zeros)
    stretched = dicom(tmp_path / "j2k.dcm", RAMP12, bits=12, syntax=JPEG2000Lossless)
    stretched.write_bytes(stretched.read_bytes().replace(b"\xff\x4f\xff\x51" + b"\0\x29\0\0" + b"\0\0\0\x40" * 2,
                                                         b"\xff\x4f\xff\x51" + b"\0\x29\0\0" + b"\0\1\0\0" * 2))
    start = time.process_time()
    for path, problem in ((image, "unpacks to more"), (stretched, "another size")):
        with pytest.raises(InputError, match=problem):
            read_dicom(path)
    assert time.process_time() - start < 3


def test_only_input_errors_escape_from_damaged_files(tmp_path: Path) -> None:
    header = {"PatientAge": "060Y", "VOILUTSequence": lut(0, 12, SQUARES[:99]), "ViewCodeSequence": view_code("R-10206")}
    originals = [dicom(tmp_path / "image", RAMP12[:32, :32], bits=12, syntax=syntax, **header).read_bytes() for syntax in LOSSLESS]
    draw, read = random.Random(0), 0
    for number in range(210):
        content = bytearray(originals[number % len(originals)])
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        if number % 10 == 9:
            del content[draw.randrange(len(content)):]
        (tmp_path / "image").write_bytes(content)
        with contextlib.suppress(InputError):
            read += read_dicom(tmp_path / "image")[0].ndim == 2
    assert 0 < read < 210


@pytest.mark.images
@pytest.mark.skipif(not IMAGES.exists(), reason="the real images are not beside this checkout")
def test_real_images() -> None:
    plain, relabelled = (read_dicom(next(IMAGES.glob(pattern))) for pattern in ("rsna_1.2*.dcm", "rsna_Fake*.dcm"))
    assert plain[1]["view"] == "PA" and plain[1]["age_years"] == "62" and plain[1]["spacing_mm"] == "0.168" and plain[1]["modality"] == "CR"
    # The duplicate has the same stored values under MONOCHROME1, so it shows the negative.
    assert np.array_equal(relabelled[0], 255 - plain[0])
    lung, mediastinum = plain[0][340:510, 200:340], plain[0][340:510, 460:560]
    assert lung.mean() < mediastinum.mean() - 20


# --- out ---------------------------------------------------------------------------------------------------------------------------

SYNTHETIC = Study(file_name="images/synthetic-000003.png", origin="synthetic", view="PA", sex="F", age_years=61.7, study_id="secret-study",
                  patient_id="source-patient-77", site="Hospital of Secrets", text="Mrs Canary, seen by Dr Yellow",
                  labels={"Pneumothorax": Stated.PRESENT}, extra={"nearest_training_film": "images/canary.png"})
MADE_BY = {"model": "cxr-64", "model_digest": "ab" * 32, "seed": "7", "plan_row": "3", "sampler": "heun", "steps": "18", "guidance": "1.5",
           "condition": '{"labels": {"Pneumothorax": 1}}', "source_patient": "canary-12"}
IMAGE = np.random.default_rng(1).integers(0, 65536, (33, 47), dtype=np.uint16)
ALLOWED = {
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "SyntheticData", "StudyDate", "ContentDate", "StudyTime",
    "ContentTime", "AccessionNumber", "Modality", "ConversionType", "ReferringPhysicianName", "SeriesDescription", "DerivationDescription",
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientIdentityRemoved", "DeidentificationMethod",
    "BodyPartExamined", "ContributingEquipmentSequence", "ViewPosition", "StudyInstanceUID", "SeriesInstanceUID", "StudyID", "SeriesNumber",
    "InstanceNumber", "PatientOrientation", "ImageComments", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RecognizableVisualFeatures", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "PixelData", "PurposeOfReferenceCodeSequence", "CodeValue", "CodingSchemeDesignator", "CodeMeaning", "Manufacturer",
    "ManufacturerModelName", "SoftwareVersions", "ContributionDescription", "ContributionDateTime",
}


def written(path: Path, **options: Any) -> pydicom.FileDataset:
    plain = {"study": SYNTHETIC, "provenance": MADE_BY, "dataset_key": "k", "created": datetime(2026, 1, 31, 12)}
    image = options.pop("image", IMAGE)
    write_dicom(path, image, **(plain | options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return pydicom.dcmread(path)


def test_a_written_image_says_what_it_is(tmp_path: Path) -> None:
    image = written(tmp_path / "a.dcm")
    assert image.SOPClassUID == image.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert image.SOPInstanceUID == image.file_meta.MediaStorageSOPInstanceUID
    assert image["SyntheticData"].tag == (0x0008, 0x001C) and image.SyntheticData == "YES"
    assert list(image.ImageType) == ["DERIVED", "SECONDARY"] and image.ConversionType == "SYN" and image.Modality == "OT"
    equipment = image.ContributingEquipmentSequence[0]
    purpose = equipment.PurposeOfReferenceCodeSequence[0]
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning) == ("109100", "DCM", "Synthesizing Equipment")
    assert equipment.Manufacturer == "Synthorax" and equipment.ManufacturerModelName == "cxr-64" and equipment.SoftwareVersions
    assert "ab" * 32 in equipment.ContributionDescription and "seed 7" in equipment.ContributionDescription
    assert equipment.ContributionDateTime == "20260131120000" and image.StudyDate == "20260131"
    assert "Synthetic" in image.DerivationDescription and "SYNTHETIC" in image.SeriesDescription
    assert all(f"{key}: {MADE_BY[key]}" in image.ImageComments for key in MADE_BY if key != "source_patient")


def test_a_written_image_names_no_patient(tmp_path: Path) -> None:
    image = written(tmp_path / "a.dcm")
    assert {element.keyword for element in image.iterall()} == ALLOWED
    assert str(image.PatientName).startswith("SYNTHETIC^") and image.PatientID.startswith("SYN-") and image.PatientBirthDate == ""
    assert image.PatientIdentityRemoved == "YES" and "no source patient" in image.DeidentificationMethod
    assert image.RecognizableVisualFeatures == "NO" and image.PatientSex == "F" and image.PatientAge == "061Y"
    content = (tmp_path / "a.dcm").read_bytes().lower()
    assert not any(word in content for word in (b"canary", b"yellow", b"secret", b"source-patient"))
    assert "BurnedInAnnotation" not in image  # nobody looked
    assert written(tmp_path / "a.dcm", text_checked=True).BurnedInAnnotation == "NO"


def test_uids_are_new_repeatable_and_unique(tmp_path: Path) -> None:
    first, again = written(tmp_path / "a.dcm"), written(tmp_path / "b.dcm")
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    other = written(tmp_path / "c.dcm", dataset_key="l")
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID"):
        assert first[keyword].value == again[keyword].value != other[keyword].value
    assert len({first.SOPInstanceUID, first.StudyInstanceUID, first.SeriesInstanceUID}) == 3
    uids = {uid_of(Study(file_name=f"images/{number}.png"), dataset_key=key) for number in range(5000) for key in "ab"}
    assert len(uids) == 10_000 and all(uid.startswith("2.25.") and len(uid) <= 64 and uid.is_valid for uid in uids)
    image = written(tmp_path / "d.dcm", created=None)
    assert image.StudyDate == image.ContentTime == "" and "ContributionDateTime" not in image.ContributingEquipmentSequence[0]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_written_pixels_come_back(tmp_path: Path, compression: Any, dtype: type[np.uint8] | type[np.uint16]) -> None:
    image = IMAGE if dtype is np.uint16 else (IMAGE // 256).astype(np.uint8)
    radiograph = written(tmp_path / "a.dcm", image=image, compression=compression)
    assert radiograph.file_meta.TransferSyntaxUID == COMPRESSIONS[compression] and radiograph.PhotometricInterpretation == "MONOCHROME2"
    assert np.array_equal(radiograph.pixel_array, image)
    grey, facts = read_dicom(tmp_path / "a.dcm")  # through the full window as well
    assert grey.dtype == dtype and np.array_equal(grey, image) and facts["view"] == "PA" and facts["age_years"] == "61"


@pytest.mark.skipif(not (shutil.which("dcmj2pnm") and shutil.which("dcmdump")), reason="DCMTK is not installed")
@pytest.mark.parametrize(("image", "option"), [(IMAGE, "+opw"), ((IMAGE // 256).astype(np.uint8), "+opb")])
def test_dcmtk_reads_the_same_pixels(tmp_path: Path, image: np.ndarray[Any, Any], option: str) -> None:
    written(tmp_path / "a.dcm", image=image)
    subprocess.run(["dcmj2pnm", option, "+Wi", "1", tmp_path / "a.dcm", tmp_path / "a.pgm"], check=True)
    shown = np.array((tmp_path / "a.pgm").read_text().split()[-image.size:], dtype=int).reshape(image.shape)
    assert np.array_equal(shown, image)
    told = subprocess.run(["dcmdump", "+P", "0008,001c", "+P", "0018,a001", tmp_path / "a.dcm"], check=True, capture_output=True, text=True)
    assert "YES" in told.stdout and told.stderr == ""


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"study": Study(file_name="real.png")}, "real image"), ({"image": np.zeros((2, 2, 3), np.uint8)}, r"shape \(2, 2, 3\)"),
    ({"image": np.zeros((2, 2), np.float32)}, "float32"), ({"provenance": {"condition": "x" * 20_000}}, "longer than"),
]


@pytest.mark.parametrize(("options", "problem"), REFUSALS)
def test_refused_before_anything_is_written(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        written(tmp_path / "a.dcm", **options)
    assert not list(tmp_path.iterdir())
