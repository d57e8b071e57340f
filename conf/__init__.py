"""The configuration groups; Hydra reads them from here."""
