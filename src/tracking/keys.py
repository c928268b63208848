"""Names under which arms log to W&B what its panels show; a test holds them against what a real arm logged."""

from __future__ import annotations

# Of every epoch.
VAL_ACCURACY, VAL_LOSS, TRAIN_LOSS = "val/accuracy", "val/loss", "train/loss"
# Once, in the summary.
TEST_ACCURACY, COST = "best/test_accuracy", "cost/FLOPs_as_MACs"
CAM_KEY = "class_activation_maps"  # pictures, the same ones in the same order in every arm
# In the config: what tells the arms of a study apart, by the field of the record that holds the same.
ARM = "scaling.name"
SEED = "seed"
CONDITIONS = {
    "budget": "budget.multiple",
    "network": "network.name",
    "data": "data.name",
    "recipe": "recipe.name",
    "epochs": "recipe.epochs",
    "data_fingerprint": "data_fingerprint",
}
