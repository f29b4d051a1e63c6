//! Which pages changed: dirty ring, dirty bitmap and device writes behind one trait
