"""`./distserve doctor`: facts are read, judged by pure functions, shown with what to do about them."""
