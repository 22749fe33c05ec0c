"""One file per family; its name is its name on the command line.

Contract: a module exports `Trainer(d_model, d_sae, recipe)`, a torch module with

    initialise(x_BD)       analytic start from a sample of normalised rows
    forward(x_BD) -> Step  reconstruction, features, and the parts of the loss (their sum is minimised)
    before_step()          what the gradients need (removing what is parallel to a unit-norm row)
    after_step()           what the parameters need (unit norm)
    sae(scale, metadata)   the trained SAE for raw activations, when rows were multiplied by `scale` in training
"""
