//! Shows mistakes where they are: file, line, column, the line and a caret.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::Mistake;

/// A text and the name it is known by.
#[derive(Debug, Clone)]
pub struct Source {
    /// Path, for the reader.
    pub name: String,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// One report for each mistake.
    #[must_use]
    pub fn report(&self, mistakes: &[Mistake]) -> String {
        let reports: Vec<_> = mistakes.iter().map(|mistake| self.one(mistake)).collect();
        reports.join("\n\n")
    }

    fn one(&self, mistake: &Mistake) -> String {
        let title = Level::ERROR.primary_title(&*mistake.message);
        let mut group = match &mistake.span {
            Some(span) => title.element(
                Snippet::source(&*self.text)
                    .path(&*self.name)
                    .annotation(AnnotationKind::Primary.span(self.visible(span))),
            ),
            None => title.element(Level::NOTE.message(format!("in {}", self.name))),
        };
        if let Some(help) = &mistake.help {
            group = group.element(Level::HELP.message(&**help));
        }
        Renderer::plain().render(&[group])
    }

    /// A caret under one line is worth more than one under ten.
    fn visible(&self, span: &Range<usize>) -> Range<usize> {
        let text = self.text.get(span.clone()).unwrap_or_default();
        let len = text.find('\n').unwrap_or(text.len());
        span.start..span.start + len
    }

    /// `file:line:column` of a byte, both counted from 1.
    #[must_use]
    pub fn position(&self, at: usize) -> String {
        let before = self.text.get(..at).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count()
            + 1;
        format!("{}:{line}:{column}", self.name)
    }
}
