"""Pictures for people: contact sheets, films, pictures in terminals, a page about a run."""
