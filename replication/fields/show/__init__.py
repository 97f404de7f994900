"""What is seen of scanned fields: pictures, figures, a viewer."""
