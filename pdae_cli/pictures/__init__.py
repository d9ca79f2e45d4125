"""Pictures in and out: pixels, what files say of themselves, sheets, photos."""
