"""What the parts are trained on: pictures with captions, from data sets of several kinds."""
