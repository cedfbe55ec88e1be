// Says when the server does not answer, and draws the page anew when it does again: what is shown meanwhile is from before.
(function () {
  const EVERY_MS = 2000;
  const send = window.fetch.bind(window);
  let lost = false;
  const banner = () => {
    let found = document.getElementById("lost");
    if (!found) {
      found = document.createElement("div");
      found.id = "lost";
      found.setAttribute("role", "alert");
      found.textContent = "The server does not answer: what you see is from before. Start “attlas serve” again; this page goes on by itself.";
      document.body.append(found);
    }
    return found;
  };
  const ask = async () => {
    try {
      if (!(await send("/alive", { cache: "no-store" })).ok) throw new Error("not yet");
      lost = false;
      banner().hidden = true;
      window.dash_clientside.set_props("acted", { data: Date.now() });
    } catch (error) {
      setTimeout(ask, EVERY_MS);
    }
  };
  window.fetch = async (...request) => {
    try {
      return await send(...request);
    } catch (error) {
      const address = String((request[0] && request[0].url) || request[0]);
      const mine = new URL(address, window.location.href).origin === window.location.origin;
      if (mine && error.name !== "AbortError" && !lost) {
        lost = true;
        banner().hidden = false;
        setTimeout(ask, EVERY_MS);
      }
      throw error;
    }
  };
})();
