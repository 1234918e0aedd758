"""Generative families. A new one is a file here and a line in one of these tables."""

FAMILIES: dict[str, str] = {
    "aae": "synthorax.families.aae:FAMILY",
    "code-encoder": "synthorax.families.code_encoder:FAMILY",
    "diffusion": "synthorax.families.diffusion_family:FAMILY",
    "gan": "synthorax.families.gan:FAMILY",
    "kl-autoencoder": "synthorax.families.kl_autoencoder:FAMILY",
    "s4-gan": "synthorax.families.s4_gan:FAMILY",
    "s4-gmvae": "synthorax.families.s4_gmvae:FAMILY",
    "s4-vae": "synthorax.families.s4_vae:FAMILY",
    "soft-intro-vae": "synthorax.families.soft_intro_vae:FAMILY",
    "spade-gan": "synthorax.families.spade_gan:FAMILY",
    "stylegan2": "synthorax.families.stylegan2:FAMILY",
    "vae": "synthorax.families.vae:FAMILY",
    "vae-gan": "synthorax.families.vae_gan:FAMILY",
    "vq-gan": "synthorax.families.vq_gan:FAMILY",
    "vq-vae": "synthorax.families.vq_vae:FAMILY",
}
"""families that are trained by a recipe"""
PACKED: dict[str, str] = {"cascade": "synthorax.families.cascade:build_cascade"}
"""families whose models are put together from trained ones, and what builds them from a spec"""
