"""From a photo to a model's frame and back: landmarks, faces, the transform, the likeness."""
