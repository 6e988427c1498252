"""Drawing and mixing: partners, lambdas and boxes, and the operators that use them."""
