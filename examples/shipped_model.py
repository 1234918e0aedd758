# %% [markdown]
# # Tutorial: generate with a shipped model
#
# Load a trained model, ask it for images by label, attribute, text and mask, look at a contact sheet, and save the images
# with their labels. It takes a minute on one processor core and works offline.
#
# ## Settings

# %%
from pathlib import Path

import numpy as np

import synthorax as sx
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.pixels import write_png
from synthorax.data.prepared import load_images
from synthorax.evaluation.report.contact_sheets import contact_sheet
from synthorax.steps.planning.plan import Plan, PlanRow
from synthorax.types import Stated

OUT = Path("tutorial-model")
NUM = 4
STEPS, SUPER_RESOLUTION_STEPS = 12, 5
MASK_MODEL_STEPS = 60
SETTINGS = sx.SampleSettings(steps=STEPS, super_resolution_steps=SUPER_RESOLUTION_STEPS)

# %% [markdown]
# ## Tensors
#
# `cxr-256` ships with the package. `open_model` reads and checks its file once; the weights are loaded when they are needed.
# Each seed gives one image, and always the same one. `None` asks for nothing in particular.

# %%
model = sx.open_model("cxr-256")
print(model.spec.image_size, model.spec.findings)
images = model.network.sample(None, seeds=range(NUM), settings=SETTINGS)  # [NUM, 1, 256, 256] in [-1, 1]
print(tuple(images.shape))

# %% [markdown]
# ## Labels and attributes
#
# A row of a plan says what an image is to show. What it leaves out is left to the model.

# %%
rows = tuple(PlanRow(seed=seed, labels={"Effusion": Stated.PRESENT}, view="PA", sex="F", age_years=60.0) for seed in range(NUM))
effusions = model.network.sample(Plan(rows=rows).condition(model.spec), seeds=[row.seed for row in rows], settings=SETTINGS)

# %% [markdown]
# ## Text, and images on disk
#
# `generate` writes a dataset folder: images, and a table with what was asked for, the model, and every seed. The images
# are marked as synthetic in the table, in their names and in their metadata.

# %%
hearts = sx.generate(model, sx.Request(num=NUM, text="cardiomegaly, no effusion"), out=OUT / "hearts",
                     settings={"steps": STEPS, "super_resolution_steps": SUPER_RESOLUTION_STEPS})
print(hearts.path, hearts.studies[0].labels)

# %% [markdown]
# ## Look at them

# %%
pixels = ((effusions[:, 0].clamp(-1, 1) + 1) * 127.5).round().numpy().astype(np.uint8)  # [NUM, 256, 256]
sheet = contact_sheet(np.concatenate([pixels, load_images(hearts, size=256).pixels]), columns=NUM,
                      captions=["effusion"] * NUM + ["cardiomegaly, no effusion"] * NUM)
sheet.save(OUT / "sheet.png")
print(sheet.size)

# %% [markdown]
# ## Masks
#
# `cxr-256` takes masks, but has not learned lesions from outlines: none of its training images had any. Images
# requested with one are marked in the column `extrapolation`. A model of the recipe `controlled-64` learns them, if its
# training images have them; here it learns from a few drawings for a moment, which is enough to show the call and not enough to obey it.

# %%
drawn = sx.prepare(write_phantom_dataset(OUT / "drawings", num=120, size=32, seed=0), size=32, out=OUT / "prepared")
run = sx.train("controlled-64", drawn, out=OUT / "run", seed=0, overrides=[
    f"train.steps={MASK_MODEL_STEPS}", "train.batch_size=8", "model.image_size=32", "model.channels=32"])
mask = np.zeros((32, 32), np.uint8)
mask[18:28, 18:28] = 255  # white is inside; the patient's left is on the right of the image
write_png(OUT / "effusion.png", mask)
masked = sx.generate(run, sx.Request(num=NUM, finding=["Effusion"], mask=[("Effusion", OUT / "effusion.png")]), out=OUT / "masked")
print(masked.path, len(masked))

# %% [markdown]
# More of what can be asked for: [generate images on request](../docs/how-to/generate-images.md).
