"""mmcompress: one recipe turns a trained multimodal teacher into a package for a device, and measures that package."""
