"""Training a forecaster: the runs, the prior, the model, the stages and the output folder, one module each.

`ncpl.training.command.main` calls them in order; every function can be used alone.
"""
