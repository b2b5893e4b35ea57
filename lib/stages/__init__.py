"""The pipeline: one function a stage, `(config, run) -> artefact`. Notebooks call these; the rooms do the work.

00, 01  inputs      world, models, features, detections
02      detector    EZ-HOI training, pairs of a split, the frozen-CLIP baseline
03, 04  bridging    text banks, bridges, predictions of every variant
05      embeddings  the embedding table
before  doctor      is everything there that the notebooks will need?
"""
