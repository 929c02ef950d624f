"""Safety checks of calls: policies of keys, who judges, and what is held back until it has been judged."""
