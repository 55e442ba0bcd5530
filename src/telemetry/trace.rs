//! Trace context in the W3C format: `00-TRACE_ID-SPAN_ID-FLAGS`.
//!
//! Owns reading and writing it. A turn's row keeps its context, so the replica that runs or closes the turn
//! continues the trace of the replica that accepted it. Context comes from outside, so an invalid one is ignored.

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The context of the current span, for work done elsewhere; `None` if nothing is traced.
pub fn current_traceparent() -> Option<String> {
    let context = tracing::Span::current().context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid()
        .then(|| format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8()))
}

/// Makes `span` a child of `traceparent`. Must be called before the span is entered. An invalid context changes
/// nothing.
pub fn adopt(span: &tracing::Span, traceparent: &str) {
    if let Some(parent) = parse(traceparent) {
        // Fails if the span is not traced or has begun: it then keeps its own trace.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// A new context: a turn has a trace id even if nothing is traced.
pub fn new_traceparent() -> String {
    // Zero means "none" in both ids.
    format!("00-{:032x}-{:016x}-01", rand::random::<u128>().max(1), rand::random::<u64>().max(1))
}

/// The trace id of a valid context: 32 lower-case hexadecimal digits.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    parse(traceparent)?;
    traceparent.get(3..35)
}

fn parse(text: &str) -> Option<SpanContext> {
    let is_hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let mut parts = text.split('-');
    let mut field = |length| parts.next().filter(|part| part.len() == length && is_hex(part));
    let (version, trace, span, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    // Later versions may append fields, version `00` has none, and `ff` is invalid.
    let has_more = parts.next().is_some();
    if version == "ff" || (version == "00" && has_more) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_context_is_valid_and_of_its_own() {
        let (one, two) = (new_traceparent(), new_traceparent());
        assert_eq!(trace_id(&one).unwrap().len(), 32);
        assert_ne!(trace_id(&one), trace_id(&two));
    }

    #[test]
    fn only_valid_contexts_are_read() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        assert_eq!(trace_id(&format!("00-{trace}-{span}-01")), Some(trace));
        assert_eq!(trace_id(&format!("01-{trace}-{span}-01-later")), Some(trace));
        for text in [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{trace}-{span}-zz"),
            format!("00-{}é-{span}-01", &trace[..30]),
        ] {
            assert_eq!(trace_id(&text), None, "{text}");
        }
    }
}
