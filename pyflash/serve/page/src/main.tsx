import { effect } from "@preact/signals";
import { render } from "preact";
import { App } from "./app";
import { begin, connect, effort, options, theme } from "./state";
import { keepSetting } from "./store";

effect(() => {
  document.documentElement.dataset.theme = theme.value;
  keepSetting("theme", theme.value);
});
effect(() => keepSetting("effort", effort.value));
effect(() => keepSetting("options", options.value));

const root = document.getElementById("app")!;
root.replaceChildren();
render(<App />, root);
void connect();
void begin();
