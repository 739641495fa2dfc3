# frozen_string_literal: true

# What the operator types and sees, printed and kept.
class Console
  LONGEST_LINE = 400

  attr_reader :text

  def self.now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

  def initialize(foundation)
    @foundation = foundation
    @text = +''
  end

  def say(line)
    $stdout.puts line
    $stdout.flush
    @text << line << "\n"
  end

  # A command in a VM, or without one in the operator's shell.
  def type(where, command)
    say "#{where ? "#{where}:~#" : '$'} #{command}"
    output = where ? @foundation.vm(where).run!(command) : @foundation.run(command)
    output.each_line { |line| see(line) }
    output
  end

  def see(line) = say("    #{shortened(line.rstrip)}")

  # The end of a log, from which `tail` reads.
  def mark(vm, log) = vm.read(log).bytesize

  # `tail -f`: the first line after `mark` that contains the text and meets the block.
  def tail(vm, log, mark, text, seconds)
    say "#{vm.name}:~# tail -f #{log} | grep --max-count=1 #{text}"
    line = Vm.wait_for("#{log} of #{vm.name} contains #{text}", seconds) do
      lines = vm.read(log).byteslice(mark..).lines.grep(/\n\z/)
      lines.find { |found| found.include?(text) && (!block_given? || yield(found)) }
    end
    see(line)
    line
  end

  # The lines after `mark` that match.
  def show(vm, log, mark, pattern)
    say "#{vm.name}:~# grep -E \"#{pattern.source}\" #{log}"
    vm.read(log).byteslice(mark..).each_line { |line| see(line) if line.match?(pattern) }
  end

  private

  def shortened(line)
    line.length > LONGEST_LINE ? "#{line[0, LONGEST_LINE]} ... (#{line.length} characters)" : line
  end
end
