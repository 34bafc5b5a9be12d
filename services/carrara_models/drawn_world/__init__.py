"""The drawn world: scenes of simple objects, their pictures, their captions and their checker."""
