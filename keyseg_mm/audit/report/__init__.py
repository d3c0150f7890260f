"""Pages of audits: templates, charts and pictures, one file that needs no network."""
