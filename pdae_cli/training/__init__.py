"""Training: one loop (`loop`), the data it draws from (`data`), and one small file a stage
(`dpm`, `autoencoder`, `latent`), which holds that stage's loss, metric and preview."""
