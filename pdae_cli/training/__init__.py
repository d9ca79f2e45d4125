"""Training: one loop (`loop`), what a stage brings to it (`stage`), the pictures (`data`,
`tables`), and one small file a stage, which holds that stage's loss, metric and preview."""
