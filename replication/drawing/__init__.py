"""What all pages and terminals share: figures, colours, tables, templates."""
