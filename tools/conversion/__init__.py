"""How the bundled files were made: `efficientnet_lite0` the model, `samples` the photographs. Not needed to label.

    make bundle CALIBRATION='imagenet-*.tar'

Needs what `requirements.txt` lists, in an environment of its own. Nothing else of the project imports this package.
"""
