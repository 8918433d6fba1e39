"""The steps of a bundle's way into a car, each done and checked: what `vehicle.py` puts into its table."""
