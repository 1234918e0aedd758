"""Generative families. A new one is a file here and a line in this table."""

FAMILIES: dict[str, str] = {
    "edm": "synthorax.families.edm:FAMILY",
    "s4-gan": "synthorax.families.s4_gan:FAMILY",
    "s4-vae": "synthorax.families.s4_vae:FAMILY",
}
