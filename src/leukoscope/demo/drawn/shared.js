// What Gradio renders anew has lost the focus: it goes back to the same place.
const places = () => [...element.querySelectorAll("a, button, input, summary, [tabindex]")];
let focused = -1;
element.addEventListener("focusin", (event) => {
  focused = places().indexOf(event.target);
});
element.addEventListener("focusout", (event) => {
  focused = event.relatedTarget ? -1 : focused;
});
watch("value", () => {
  if (document.activeElement === document.body && element.checkVisibility()) {
    places()[Math.min(focused, places().length - 1)]?.focus({ preventScroll: true });
  }
});
