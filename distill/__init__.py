"""The workstation: distilling teachers into students, fine-tuning heads, exporting bundles."""
