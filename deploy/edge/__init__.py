"""What a device needs of an exported file: to read, run, measure and verify it. No torch here."""
