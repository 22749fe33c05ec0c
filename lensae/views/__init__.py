"""Records -> what a person sees: tables, text, figures."""
