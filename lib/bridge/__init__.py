"""Learn the distribution of text embeddings with a diffusion model and carry vision features onto it.

geometry    centring on the unit sphere                 text_bank   sentences' embeddings and their text space
denoisers   networks that predict the clean vector      training    denoiser on a text bank, resumable
diffusion   cosine schedule and losses                  bundle      the trained bridge: features -> features
samplers    grids and solvers, pure functions           scoring     class logits with the bridge on
presets     what the public programs ran            student     the whole walk in one evaluation
accuracy    solvers against 600 evaluations         self_test   what a bundle carries to prove itself
released    public `model-N.pt` trainer files       legacy      old pickles in and out; old_config: old YAML
"""
