"""How an arm is trained: recipe, schedule, LightningModule, weight averaging, hardware."""
