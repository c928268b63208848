"""The only room that talks to W&B."""
