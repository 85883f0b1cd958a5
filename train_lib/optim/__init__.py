"""How gradients become updates: optimizers, learning rate schedules, and which parameters train how
fast. Each is built from its section of the config, which is checked here.
"""
