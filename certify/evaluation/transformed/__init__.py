"""Certified ranges of image transformations: how far may an image be turned, brightened, moved?"""
