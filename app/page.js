// What Gradio has no component for: Esc stops the answer, and the address names the open chat, so that a reload
// finds it again.
(() => {
  "use strict";

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || event.isComposing) return;
    document.querySelector("#question .stop-button")?.click();
  });

  const follow = () => {
    const place = document.querySelector("#chat-id textarea, #chat-id input");
    if (!place) return;
    const address = new URL(window.location.href);
    if ((address.searchParams.get("chat") || "") === place.value) return;
    if (follow.seen === undefined && !place.value) return; // the page has not said yet what is open
    follow.seen = place.value;
    if (place.value) address.searchParams.set("chat", place.value);
    else address.searchParams.delete("chat");
    window.history.replaceState(window.history.state, "", address);
  };
  // A field's value changes without an event that could be listened to.
  window.setInterval(follow, 250);
})();
