"""What goes in: data sets, images, splits and the transforms that turn a cell into a network's input."""
