"""Tables and figures of a study, from its records and the files beside them alone."""
