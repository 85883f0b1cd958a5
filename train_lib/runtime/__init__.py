"""The machine that a run works on: platform, processes, devices and how arrays are laid out there,
signals, compiled programs, the screen. Nothing here knows what is trained; every room may use it.
"""
