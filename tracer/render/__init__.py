"""Results and graphs for people: pictures, pages and files. Imported only when something is saved."""
