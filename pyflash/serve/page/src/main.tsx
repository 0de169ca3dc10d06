import { effect } from "@preact/signals";
import { render } from "preact";
import { begin } from "./answers";
import { App } from "./app";
import { connect, effort, options, theme } from "./state";
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
