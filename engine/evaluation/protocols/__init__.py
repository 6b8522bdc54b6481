"""How a frozen encoder is measured: each protocol a module with Options and run(study, options) -> scores."""
