"""The project as its users meet it: build, documents, examples, demo, and the imports that its folders promise."""
