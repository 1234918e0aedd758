"""Generative families. A new one is a file here and a line in `FAMILIES`."""

FAMILIES: dict[str, str] = {
    "aae": "synthorax.families.autoencoders.aae:FAMILY",
    "diffusion": "synthorax.families.denoising.family:FAMILY",
    "gan": "synthorax.families.adversarial.generator:FAMILY",
    "inversion-encoder": "synthorax.families.adversarial.inversion_encoder:FAMILY",
    "kl-autoencoder": "synthorax.families.autoencoders.kl_autoencoder:FAMILY",
    "kumar-gan": "synthorax.families.kumar.gan:FAMILY",
    "kumar-gmvae": "synthorax.families.kumar.gmvae:FAMILY",
    "kumar-vae": "synthorax.families.kumar.vae:FAMILY",
    "layout": "synthorax.families.autoencoders.layout:FAMILY",
    "soft-intro-vae": "synthorax.families.autoencoders.soft_intro_vae:FAMILY",
    "spade-gan": "synthorax.families.adversarial.spade_gan:FAMILY",
    "stylegan2": "synthorax.families.adversarial.stylegan2:FAMILY",
    "vae": "synthorax.families.autoencoders.vae:FAMILY",
    "vae-gan": "synthorax.families.autoencoders.vae_gan:FAMILY",
    "volume-diffusion": "synthorax.families.denoising.volumes:FAMILY",
    "vq-gan": "synthorax.families.autoencoders.vq_gan:FAMILY",
    "vq-vae": "synthorax.families.autoencoders.vq_vae:FAMILY",
}
"""families that are trained by a recipe"""
PACKED: dict[str, str] = {"cascade": "synthorax.families.denoising.cascade:build_cascade"}
"""families whose models are packed from trained ones, and what builds them from a spec"""
