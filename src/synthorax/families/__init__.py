"""Generative families. A new one is a file here and a line in this table."""

FAMILIES: dict[str, str] = {
    "diffusion": "synthorax.families.diffusion_family:FAMILY",
    "kl-autoencoder": "synthorax.families.kl_autoencoder:FAMILY",
    "s4-gan": "synthorax.families.s4_gan:FAMILY",
    "s4-vae": "synthorax.families.s4_vae:FAMILY",
    "vq-gan": "synthorax.families.vq_gan:FAMILY",
}
