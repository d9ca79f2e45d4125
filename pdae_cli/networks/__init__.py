"""The networks of the paper: eps_theta (`unet`), G_psi (`gradient`), E_phi (`encoder`), and the
latent DPM (`latent`). They know tensors and nothing else: no schedule, no solver, no files."""
