"""Image sources, splits with a sealed test set, batched tensor augmentation, the LightningDataModule."""
