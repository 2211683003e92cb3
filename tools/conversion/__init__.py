"""Build the bundled files: `efficientnet_lite0` the model, `samples` the photographs. Not needed for labelling.

    make bundle CALIBRATION='imagenet-*.tar'

It needs the packages of `requirements.txt`, in a separate environment. Nothing else in the project imports it.
"""
