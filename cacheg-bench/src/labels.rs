//! Places for the labels of a picture, so that none lies on another or on a point.

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Box2 {
    pub(crate) left: i32,
    pub(crate) top: i32,
    pub(crate) right: i32,
    pub(crate) bottom: i32,
}

impl Box2 {
    pub(crate) fn new(left: i32, top: i32, right: i32, bottom: i32) -> Self {
        Self { left, top, right, bottom }
    }

    pub(crate) fn around((x, y): (i32, i32), radius: i32) -> Self {
        Self::new(x - radius, y - radius, x + radius, y + radius)
    }

    fn meets(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    fn holds(&self, other: &Self) -> bool {
        self.left <= other.left
            && self.top <= other.top
            && other.right <= self.right
            && other.bottom <= self.bottom
    }

    /// Where a line from its point should end, unless the label is so near that it needs none.
    pub(crate) fn leader(&self, (x, y): (i32, i32)) -> Option<(i32, i32)> {
        let end = (x.clamp(self.left, self.right), y.clamp(self.top, self.bottom));
        ((end.0 - x).abs().max((end.1 - y).abs()) > 14).then_some(end)
    }
}

/// What is taken.
#[derive(Debug)]
pub(crate) struct Labels {
    area: Box2,
    taken: Vec<Box2>,
}

impl Labels {
    pub(crate) fn new(area: Box2) -> Self {
        Self { area, taken: Vec::new() }
    }

    /// Keeps labels away from here.
    pub(crate) fn occupy(&mut self, place: Box2) {
        self.taken.push(place);
    }

    /// The nearest free place for a label of this size, beside its point if possible, and takes it. Where the
    /// picture is full, the place is beside the point all the same.
    pub(crate) fn place(&mut self, (x, y): (i32, i32), width: i32, height: i32) -> Box2 {
        let at = |left: i32, top: i32| Box2::new(left, top, left + width, top + height);
        let ring = |far: i32| {
            let (beside, middle) = ([x + far, x - far - width, x - width / 2], y - height / 2);
            let [right, left, center] = beside;
            [
                at(right, middle),
                at(left, middle),
                at(center, y - far - height),
                at(center, y + far),
                at(right, y - far - height),
                at(right, y + far),
                at(left, y - far - height),
                at(left, y + far),
            ]
        };
        let free =
            |place: &Box2| self.area.holds(place) && !self.taken.iter().any(|taken| taken.meets(place));
        let place = (9..400).step_by(3).flat_map(ring).find(free).unwrap_or(at(x + 9, y - height / 2));
        self.taken.push(place);
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_one_spot_do_not_meet() {
        let area = Box2::new(0, 0, 1000, 600);
        let mut labels = Labels::new(area);
        labels.occupy(Box2::around((500, 300), 7));
        let places: Vec<Box2> = (0..12).map(|_| labels.place((500, 300), 120, 18)).collect();
        for (index, place) in places.iter().enumerate() {
            assert!(area.holds(place) && !place.meets(&Box2::around((500, 300), 7)));
            assert!(places[..index].iter().all(|other| !other.meets(place)));
        }
        assert_eq!(places[0].leader((500, 300)), None);
        assert!(places[11].leader((500, 300)).is_some());
        assert_eq!(Labels::new(Box2::new(0, 0, 10, 10)).place((5, 5), 50, 18).left, 14);
    }
}
